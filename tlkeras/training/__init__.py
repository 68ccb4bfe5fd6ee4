"""`fit_stages` and what it needs: run a Plan, monitor each stage, resume, and return a Run."""
