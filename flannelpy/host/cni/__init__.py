"""What does a container runtime need of us? The CNI plugin (``plugin``), and that it is where runtimes look (``place``)."""
