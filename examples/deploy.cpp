// Runs a package that scripts/export.py format=pt2 wrote, without Python:
//
//   deploy libdrconv_torch.so network.pt2 3 224 224
//
// It gives the network two pictures, the second of which is the first one negated, and prints the outputs' sums.
// Build: c++ -std=c++20 deploy.cpp -I$TORCH/include -I$TORCH/include/torch/csrc/api/include \
//   -L$TORCH/lib -Wl,-rpath,$TORCH/lib -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 -ldl -o deploy
#include <ATen/ops/cat.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/sum.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: %s libdrconv_torch.so network.pt2 channels rows columns\n", argv[0]);
    return 2;
  }
  if (dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {  // registers the operators drconv::*
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const int64_t channels = std::atoll(argv[3]), rows = std::atoll(argv[4]), columns = std::atoll(argv[5]);
  torch::inductor::AOTIModelPackageLoader network(argv[2]);
  const at::Tensor picture = at::linspace(-1, 1, channels * rows * columns).view({1, channels, rows, columns});
  const at::Tensor output = network.run({at::cat({picture, picture.neg()})}).at(0);
  for (int64_t image = 0; image < output.size(0); ++image) {
    std::printf("%.6f\n", output[image].sum().item<double>());
  }
  return 0;
}
