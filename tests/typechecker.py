"""The checker that runs beside jaxtyping in tests: as mypy has it, an int is good where a float is expected."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
