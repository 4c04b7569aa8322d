"""The project's own checks and reports: ``python -m tools.lint`` runs the checks."""
