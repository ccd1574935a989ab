"""Stage two: starts, joint solver, error bars and diagnostics."""
