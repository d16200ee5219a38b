"""Loading a checkpoint and running it: what the command line, the server, the demo and Python scripts use."""
