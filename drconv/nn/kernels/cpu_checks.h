// What the operators demand of their arguments: they read memory through bare pointers, and anybody can call them.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace drconv {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// On the CPU, in x's type, of these sizes; -1 stands for any.
inline void check(const char* name, const Tensor& tensor, const Tensor& x, const std::vector<int64_t>& sizes) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == x.scalar_type(), name, " is ", tensor.scalar_type(), " and x is ",
                   x.scalar_type(), "; give both the same type");
  TORCH_CHECK_VALUE(tensor.device().is_cpu() && tensor.layout() == at::kStrided, name, " is on ", tensor.device(),
                    " with layout ", tensor.layout(), "; this kernel needs dense tensors on the CPU");
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; fits && i < sizes.size(); ++i) {
    fits = sizes[i] < 0 || tensor.size(i) == sizes[i];
  }
  TORCH_CHECK_VALUE(fits, name, " is ", tensor.sizes(), "; it needs ", c10::IntArrayRef(sizes),
                    " (-1: any) to fit x ", x.sizes());
  TORCH_CHECK_NOT_IMPLEMENTED(!tensor._fw_grad(0).defined(), "the C++ kernel of DRConv has no forward-mode derivative; "
                              "use kernel=\"reference\" for it");
}

inline void check(const char* name, const OptionalTensor& tensor, const Tensor& x, const std::vector<int64_t>& sizes) {
  if (tensor) {
    check(name, *tensor, x, sizes);
  }
}

inline void check_picture(const Tensor& x) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, "x is ", x.scalar_type(),
                   "; this kernel knows float and double");
  check("x", x, x, {-1, -1, -1, -1});
}

// x (B, C, H, W), weight (B or 1, M, O, C, 1, 1), logits (B, M, H, W), scale (B, M) or none.
inline void check_problem(const Tensor& x, const Tensor& weight, const Tensor& logits, const OptionalTensor& scale) {
  check_picture(x);
  check("weight", weight, x, {-1, -1, -1, x.size(1), 1, 1});
  TORCH_CHECK_VALUE(weight.size(0) == 1 || weight.size(0) == x.size(0), "weight holds filters for ", weight.size(0),
                    " images; use 1 or the batch of x, ", x.size(0));
  TORCH_CHECK_VALUE(weight.size(1) > 0, "weight is ", weight.sizes(), "; it needs at least one region");
  check("logits", logits, x, {x.size(0), weight.size(1), x.size(2), x.size(3)});
  check("scale", scale, x, {x.size(0), weight.size(1)});
}

// [mean, variance], and [weight, bias] if there are four, each of `channels` numbers.
inline void check_norm(const char* name, at::TensorList norm, const Tensor& x, int64_t channels) {
  TORCH_CHECK_VALUE(norm.empty() || norm.size() == 2 || norm.size() == 4, name, " holds ", norm.size(),
                    " tensors; it needs none, [mean, variance] or [mean, variance, weight, bias]");
  for (const Tensor& tensor : norm) {
    check(name, tensor, x, {channels});
  }
}

// The arguments of a layer; see `layer_cpu`. M regions, E units of the generator for each, or one scale.
inline void check_layer(const Tensor& x, const Tensor& weight, const Tensor& guide, bool has_logits, at::TensorList guide_norm,
                 const OptionalTensor& gate_weight, const OptionalTensor& gate_bias, const OptionalTensor& bias,
                 at::TensorList norm) {
  check_picture(x);
  const int64_t batch = x.size(0), channels = x.size(1), anything = -1;
  TORCH_CHECK_VALUE(channels > 0, "x is ", x.sizes(), "; it needs at least one channel");
  check("weight", weight, x, {anything, anything, channels, 1, 1});
  check("guide", guide, x, {has_logits ? batch : anything, has_logits ? anything : channels,
                            has_logits ? anything : 1, has_logits ? anything : 1});
  const int64_t regions = guide.size(has_logits ? 1 : 0), filters = weight.size(0), outputs = weight.size(1);
  TORCH_CHECK_VALUE(regions > 0 && filters > 0, "guide is ", guide.sizes(), " and weight ", weight.sizes(),
                    "; both need at least one region");
  TORCH_CHECK_VALUE(!has_logits || x.numel() == 0 || guide.numel() > 0, "guide is ", guide.sizes(),
                    "; it needs at least one position");
  check_norm("guide_norm", guide_norm, x, regions);
  check_norm("norm", norm, x, outputs);
  check("bias", bias, x, {outputs});
  TORCH_CHECK_VALUE(gate_weight.has_value() == gate_bias.has_value(), "the generator needs weight and bias, or neither");
  TORCH_CHECK_VALUE(gate_weight || filters == regions, "weight holds ", filters, " filters for ", regions,
                    " regions; it needs one for each, or a generator that mixes them");
  if (gate_weight) {
    const bool is_scale = filters == regions && gate_weight->dim() == 2 && gate_weight->size(0) == regions;
    check("gate_weight", gate_weight, x, {is_scale ? regions : regions * filters, channels});
    check("gate_bias", gate_bias, x, {gate_weight->size(0)});
  }
}

}  // namespace drconv
