"""The server: node registry, scheduler, gRPC services, data relay and supervision of run processes."""
