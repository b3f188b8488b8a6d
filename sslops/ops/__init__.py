"""One file an op: schema, kernels per device, fake kernel, autograd, public function."""
