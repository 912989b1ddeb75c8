from contextlib import contextmanager
from longwave.extensions.handle import find_extension

def rotaries_of(model):
    found = find_extension(model)
    return [] if found is None else found.rotaries

@contextmanager
def factor_for_a_while(rotaries):
    if not rotaries:
        yield
        return
    with rotaries[0].dial.held():
        yield
