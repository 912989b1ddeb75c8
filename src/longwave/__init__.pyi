"""The public names for type checkers; `__init__.py` imports them when they are first used."""

from longwave.adapter import load as load, save as save
from longwave.evaluation.needle import needle as needle
from longwave.evaluation.passkey import Retrieval as Retrieval, passkey as passkey
from longwave.evaluation.perplexity import Perplexity as Perplexity, perplexity as perplexity
from longwave.exporters.run import Exported as Exported, export as export
from longwave.extensions.attach import (
    extend as extend,
    extended as extended,
    restore as restore,
    suspended as suspended,
)
from longwave.extensions.conversation import Conversation as Conversation
from longwave.extensions.handle import Extension as Extension, extension as extension, rotaries as rotaries
from longwave.extensions.policy import (
    frozen as frozen,
    set_length as set_length,
    set_policy as set_policy,
    snapshot as snapshot,
)
from longwave.methods import METHODS as METHODS, Method as Method, parse_method as parse_method
from longwave.rope import Rope as Rope
from longwave.schedule import (
    Ceiling as Ceiling,
    Continuous as Continuous,
    Schedule as Schedule,
    Static as Static,
    Threshold as Threshold,
    parse_schedule as parse_schedule,
)
from longwave.training.config import TrainConfig as TrainConfig
from longwave.training.run import train as train
from longwave.trajectory import Snapshot as Snapshot, Trajectory as Trajectory

__version__: str
