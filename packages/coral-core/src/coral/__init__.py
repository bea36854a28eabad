"""Version control for model weights that lives inside a training run.

from coral import Repository
repo = Repository("./checkpoints", init=True)
"""

from pkgutil import extend_path

# The adapters are distributions of their own that install coral/integrations/<name>: without this line an editable
# install of coral-core would hide theirs.
__path__ = extend_path(__path__, __name__)

from coral._version import __version__
from coral.delta import DeltaConfig
from coral.errors import CoralError
from coral.objects import Commit
from coral.repository import Repository
from coral.weights import WeightTensor

__all__ = ["Commit", "CoralError", "DeltaConfig", "Repository", "WeightTensor", "__version__"]
