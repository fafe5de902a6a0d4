"""The Grafana dashboard of training runs, of the metrics that they export through Ray's Prometheus endpoint."""

from importlib.resources import files


def dashboard() -> str:
    """The dashboard as JSON, for Grafana's import or its folder of provisioned ones. It asks for a Prometheus."""
    return files("cluster").joinpath("grafana/training.json").read_text(encoding="utf-8")
