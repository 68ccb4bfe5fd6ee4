"""`fit_stages`: runs a Plan, follows each stage, resumes, and returns a Run."""
