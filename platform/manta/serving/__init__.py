"""Endpoints: what answers predictions, inside Ray Serve replicas. Imports neither feast nor mlflow."""
