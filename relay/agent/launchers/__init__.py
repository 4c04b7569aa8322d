"""How a holder process is started: `local` as the agent's own user, `other_user` as its owner's."""
