"""``python -m relay.holder`` is how an agent starts a holder."""

from relay.holder.main import main

main()
