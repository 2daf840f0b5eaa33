"""The orchestrator: registry, scheduler, gRPC services, relay, supervisor of run processes. Imports floors 0-2."""
