import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.fork_server import ForkServer


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = ForkServer(tmp_path_factory.mktemp("ranks"))
    yield server
    server.close()


@pytest.fixture
def campaign(server, tiny_data, tmp_path):
    return Campaign(server, tiny_data, tmp_path)
