"""The process that moves udp's packets. Nothing of the agent is imported in here, and nothing in here by the agent."""
