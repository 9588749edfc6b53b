"""The vecdb server: gRPC in front of the engine, and the command line."""
