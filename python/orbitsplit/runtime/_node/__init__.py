"""The process of a host: it joins a coordinator, and starts and ends the processes of its node's stages."""
