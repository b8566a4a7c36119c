"""The five reports' tables, trained again row by row, and the question behind them."""
