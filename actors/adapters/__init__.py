"""Other projects' own interfaces, with this engine behind them. Each needs its package, which is not required."""
