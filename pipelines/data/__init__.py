"""Images on their way to the network: sources, build, manifest, plan, loaders."""
