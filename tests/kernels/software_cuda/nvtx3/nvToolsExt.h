// Ranges for profilers: counted.
#pragma once

int nvtxRangePushA(const char* name);
int nvtxRangePop();
