"""From graph and state to what is deployed: folded weights, linear operators, live neurons."""
