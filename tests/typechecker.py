"""Runtime type checker for jaxtyping in tests. As in mypy, an int is accepted where a float is expected."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
