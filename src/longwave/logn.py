from longwave.extensions.log_n import *
from longwave.attention.temperature import log_n_scale
from longwave.attention.kernels import decode as _decode
