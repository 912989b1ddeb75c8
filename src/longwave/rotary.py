from longwave.extensions.standin import *
from longwave.extensions.rotary import ScaledRotary
