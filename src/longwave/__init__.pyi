"""The public names for type checkers; `__init__.py` imports them when they are first used."""

from longwave.attention import ATTENTIONS as ATTENTIONS
from longwave.attention import Attention as Attention
from longwave.attention import Band as Band
from longwave.checkpoints.load import load as load
from longwave.checkpoints.merge import merge as merge
from longwave.checkpoints.save import save as save
from longwave.evaluation.losses import LengthLoss as LengthLoss
from longwave.evaluation.losses import Perplexity as Perplexity
from longwave.evaluation.needle import needle as needle
from longwave.evaluation.passkey import passkey as passkey
from longwave.evaluation.perplexity import perplexity as perplexity
from longwave.evaluation.retrieval import LengthRetrieval as LengthRetrieval
from longwave.evaluation.retrieval import Retrieval as Retrieval
from longwave.exporters.exported import Exported as Exported
from longwave.exporters.run import export as export
from longwave.extensions.attach import (
    extend as extend,
)
from longwave.extensions.attach import (
    extended as extended,
)
from longwave.extensions.attach import (
    restore as restore,
)
from longwave.extensions.attach import (
    suspended as suspended,
)
from longwave.extensions.conversation import Conversation as Conversation
from longwave.extensions.handle import Extension as Extension
from longwave.extensions.handle import extension as extension
from longwave.extensions.handle import rotaries as rotaries
from longwave.extensions.policy import (
    frozen as frozen,
)
from longwave.extensions.policy import (
    set_length as set_length,
)
from longwave.extensions.policy import (
    set_policy as set_policy,
)
from longwave.extensions.policy import (
    snapshot as snapshot,
)
from longwave.extensions.spec import Spec as Spec
from longwave.extensions.spec import parse_spec as parse_spec
from longwave.methods import METHODS as METHODS
from longwave.methods import Method as Method
from longwave.methods import parse_method as parse_method
from longwave.rope import Rope as Rope
from longwave.schedule import (
    Ceiling as Ceiling,
)
from longwave.schedule import (
    Continuous as Continuous,
)
from longwave.schedule import (
    Schedule as Schedule,
)
from longwave.schedule import (
    Static as Static,
)
from longwave.schedule import (
    Steps as Steps,
)
from longwave.schedule import (
    Threshold as Threshold,
)
from longwave.schedule import (
    parse_schedule as parse_schedule,
)
from longwave.training.config import TrainConfig as TrainConfig
from longwave.training.drawn import drawn_lengths as drawn_lengths
from longwave.training.frozen import unfreeze as unfreeze
from longwave.training.run import train as train
from longwave.trajectory import Snapshot as Snapshot
from longwave.trajectory import Trajectory as Trajectory

__version__: str
