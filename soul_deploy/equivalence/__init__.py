"""Two executions of one network: are spikes, counts and scores the same?"""
