from longwave.extensions.attach import extend, extend_again, extend_from, extended, restore, rope_of, suspended
from longwave.extensions.handle import extension, rotaries
from longwave.extensions.policy import frozen, set_length, set_policy, snapshot

def trajectories_of(model):
    return extension(model).trajectories
