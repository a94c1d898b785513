"""What runs on the cluster: `python -m manta.worker RUN` executes one run of the ledger."""
