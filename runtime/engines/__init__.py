"""One small file per backend behind one interface, `runtime.engines.interface.Engine`."""
