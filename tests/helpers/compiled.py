"""How a test compiles what it says of rounding: as a user's program is, not as quickly as most tests."""

OPTIMIZED = {"xla_backend_optimization_level": 3}
