"""What happens to a packet from here to there? ``flannelpy trace`` and ``flannelpy ping``; one module a question."""
