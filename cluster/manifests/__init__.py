"""Manifests for clusters, rendered from typed settings: KubeRay, `ray up` and Slurm."""
