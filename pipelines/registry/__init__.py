"""Models as folders of plain files, and MLflow's registry of them.

`model.safetensors` holds weights and buffers, `model.json` all that is needed to use them, `README.md` what a person
wants to know, `recipe.yaml` how to train another. MLflow loads the folder through `pipelines.pyfunc`, which is part of
this package: nothing in the folder is unpickled or executed.
"""

from pipelines.registry.card import ModelCard as ModelCard
from pipelines.registry.card import parse_card as parse_card
from pipelines.registry.model import Model as Model
from pipelines.registry.model import load_model as load_model
from pipelines.registry.model import read_model as read_model
from pipelines.registry.model import write_model as write_model
from pipelines.registry.versions import HASH_TAG as HASH_TAG
from pipelines.registry.versions import file_hashes as file_hashes
from pipelines.registry.versions import publish as publish
from pipelines.registry.versions import register as register
from pipelines.registry.versions import versions as versions
