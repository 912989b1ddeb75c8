from longwave.extensions.conversation import *
