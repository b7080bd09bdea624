"""Pictures: curves of runs, masks of trained networks, the figure of the operator's page."""
