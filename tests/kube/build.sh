#!/bin/sh
# Kubernetes' own programs out of the Go module registry: build.sh VERSION DIRECTORY, like v1.37.2. With what is there it does nothing.
#
# k8s.io/kubernetes replaces its staging modules by folders of its own tree, which counts in that tree alone (go.dev/ref/mod,
# replace): whoever requires it has to replace each by the module that was published from there, v0.N of v1.N.
set -eu
version=$1 into=$2 programs="kube-apiserver kube-controller-manager kube-scheduler kubelet"

mkdir -p "$into"
exec 9>"$into/lock"
flock 9
missing=
for each in $programs; do [ -x "$into/$each" ] || missing="$missing $each"; done
[ -n "$missing" ] || exit 0

have=$(go env GOVERSION 2>/dev/null || true)
minor=$(printf %s "$have" | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
if [ "${minor:-0}" -lt 26 ]; then
	echo "kubernetes: expected Go 1.26 or later, found ${have:-none}; tests of a real Kubernetes are skipped"
	exit 0
fi

echo "building Kubernetes $version into $into (some minutes, once)"
work=$(mktemp -d)
trap 'cd / && rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work"
module=$(go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
{
	echo "module kubernetes.test"
	sed -n '/^go /p; /^godebug/p' "$module"
	echo "require k8s.io/kubernetes $version"
	sed -n 's|^replace ||; s|^\t*\(k8s\.io/[a-z-]*\) => \./staging/.*|replace \1 => \1 v0.'"${version#v1.}|p" "$module"
} >go.mod
{
	printf '//go:build tools\n\npackage programs\n'
	for each in $programs; do echo "import _ \"k8s.io/kubernetes/cmd/$each\""; done
} >programs.go
go mod tidy >tidy.log 2>&1 || { tail -n 5 tidy.log; exit 1; }
stamp=k8s.io/component-base/version.git minor=${version#v1.}
for each in $missing; do
	go build -trimpath -ldflags "-s -w -X ${stamp}Version=$version -X ${stamp}Major=1 -X ${stamp}Minor=${minor%.*} -X ${stamp}TreeState=clean" \
		-o "$work/$each" "k8s.io/kubernetes/cmd/$each"
	mv "$work/$each" "$into/$each"
done
