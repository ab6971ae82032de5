"""The daemon's control socket, until the namespace takes its place: `cluster.control.Control` as JSON lines."""
