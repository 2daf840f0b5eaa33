"""The orchestrator: registry, scheduler, gRPC service, relay and the supervisor of run processes. Imports floors 0-2."""
