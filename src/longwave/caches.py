from longwave.extensions.caches import *
