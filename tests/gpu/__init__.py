"""What must hold on a GPU, run on the device in software each time and on a GPU where there is one (`-m gpu`)."""
