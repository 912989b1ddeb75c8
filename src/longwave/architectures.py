from longwave.extensions.sites import *
from longwave.extensions.sites import host_of, rope_at, find_sites, Site, describe_positions
