// The CPU kernel's operators: memory, dispatch over types and registration; cpu.py adds the autograd.
#include <torch/library.h>
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "cpu_backward.h"
#include "cpu_checks.h"
#include "cpu_forward.h"
#include "cpu_gate.h"
#include "cpu_packed.h"

namespace drconv {
namespace {

Tensor dense(const Tensor& tensor) {
  return tensor.contiguous(tensor.suggest_memory_format());
}

// Whether `tensor` is channels-last, possibly a slice of the channels of such a tensor.
bool has_rows(const Tensor& tensor) {
  if (tensor.stride(1) <= 0) {
    return false;  // expanded channels lie in one place
  }
  const int64_t row = tensor.stride(3);
  const bool rows_follow = tensor.size(2) == 1 || tensor.stride(2) == tensor.size(3) * row;
  const bool images_follow = tensor.size(0) == 1 || tensor.stride(0) == tensor.size(2) * tensor.size(3) * row;
  return rows_follow && images_follow && tensor.stride(1) * tensor.size(1) <= row;
}

template <typename T>
Picture<T> picture(const Tensor& tensor) {
  const bool channels_last = tensor.is_contiguous(at::MemoryFormat::ChannelsLast) || has_rows(tensor);
  const int64_t channels = tensor.size(1), pixels = tensor.size(2) * tensor.size(3);
  const bool sliced = channels_last && !tensor.is_contiguous(at::MemoryFormat::ChannelsLast);
  return {static_cast<T*>(tensor.data_ptr()), channels, pixels, channels_last,
          sliced ? tensor.stride(3) : channels, sliced ? tensor.stride(1) : 1};
}

template <typename T>
Picture<T> no_picture() {
  return {nullptr, 1, 1, true, 1, 1};
}

template <typename T>
const T* pointer(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

// What follows the product: y = min(max(gain * product + bias, 0), limit), each part where it is present.
struct Epilogue {
  OptionalTensor gain, bias;
  std::optional<double> limit;
};

// Filters (images, regions, O, C), which the product takes as they are or transposed, and perhaps packed already.
struct Filters {
  Tensor weight;
  int64_t images, regions, outputs, inputs;
  bool transposed;
  OptionalTensor packed;

  // From (B or 1, M, O, C, 1, 1).
  static Filters of_images(const Tensor& weight, bool transposed) {
    return {weight.contiguous(), weight.size(0), weight.size(1), weight.size(2), weight.size(3), transposed, {}};
  }
  // From (M, O, C, 1, 1), or a convolution's (O, C, 1, 1).
  static Filters of_layer(const Tensor& weight, const OptionalTensor& packed = {}) {
    const int64_t last = weight.dim() - 3, regions = last == 2 ? weight.size(0) : 1;
    return {weight.contiguous(), 1, regions, weight.size(last - 1), weight.size(last), false, packed};
  }
};

// Product of every pixel with its region's filter, or with its transpose. With `mixing` (B, M, E) the filters are
// (1, E, O, C), and a region's filter is their sum with its factors.
Tensor product(const Tensor& x, const Filters& filters, const Tensor& logits, const OptionalTensor& scale,
               const OptionalTensor& mixing = {}, const Epilogue& epilogue = {}) {
  const Tensor& weight = filters.weight;
  const bool transposed = filters.transposed;
  const int64_t outputs = transposed ? filters.inputs : filters.outputs;
  Tensor y = at::empty({x.size(0), outputs, x.size(2), x.size(3)}, x.options(), x.suggest_memory_format());
  if (y.numel() == 0) {
    return y;
  }
  if (x.size(1) == 0) {
    return y.zero_();  // the sum over no channels; layers, which add more to it, do not get here
  }
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cpu_region_conv2d", [&] {
    const Panels<scalar_t> panels(filters.regions, outputs, x.size(1));
    const bool shared = filters.images == 1, has_packed = is_packed(filters.packed, weight, panels);
    const int64_t rows = x.size(0) * x.size(2) * x.size(3);
    const Source source = has_packed ? Source::packed
        : !shared                    ? Source::panels
        : mixing                     ? Source::packed
                                     : choose_source(x.size(0), rows, filters.regions, x.size(1), transposed);
    const scalar_t *stored = weight.const_data_ptr<scalar_t>(), *packed = nullptr;
    if (has_packed) {
      packed = filters.packed->const_data_ptr<scalar_t>();
    } else if (source == Source::packed) {
      scalar_t* memory = scratch<scalar_t, 4>(panels.size());
      pack(stored, panels, transposed, memory);
      packed = memory;
    }
    const Forward<scalar_t> forward{
        picture<const scalar_t>(x), logits.defined() ? picture<const scalar_t>(logits) : no_picture<const scalar_t>(),
        picture<scalar_t>(y), panels,
        packed, source == Source::stored ? stored : nullptr, source == Source::panels ? stored : nullptr,
        transposed, pointer<scalar_t>(mixing), pointer<scalar_t>(scale), pointer<scalar_t>(epilogue.gain),
        pointer<scalar_t>(epilogue.bias), epilogue.limit.has_value(),
        static_cast<scalar_t>(epilogue.limit.value_or(0))};
    forward.run(x.size(0));
  });
  return y;
}

OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(tensor->contiguous()) : std::nullopt;
}

Tensor forward_cpu(const Tensor& x, const Tensor& weight, const Tensor& logits, const OptionalTensor& scale) {
  check_problem(x, weight, logits, scale);
  return product(dense(x), Filters::of_images(weight, false), dense(logits), contiguous(scale));
}

Tensor readable(const Tensor& x) {
  return has_rows(x) ? x : dense(x);
}

// The generator's first layer peak * sigmoid(W mean(x) + b), (B, units).
Tensor gate(const Tensor& x, const Tensor& weight, const Tensor& bias, double peak) {
  Tensor scale = at::empty({x.size(0), weight.size(0)}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cpu_drconv", [&] {
    const auto source = picture<const scalar_t>(x);
    const scalar_t *factors = weight.const_data_ptr<scalar_t>(), *offsets = bias.const_data_ptr<scalar_t>();
    scalar_t* result = scale.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, x.size(0), 2, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        gate_of_image<scalar_t>(source, b, factors, offsets, weight.size(0), peak, result + b * weight.size(0));
      }
    });
  });
  return scale;
}

// Folds a batch norm (mean, variance, then weight and bias if it has them) with running statistics into gain and bias.
Epilogue fold(const OptionalTensor& bias, at::TensorList norm, double eps, std::optional<double> limit) {
  if (norm.empty()) {
    return {std::nullopt, contiguous(bias), limit};
  }
  std::vector<Tensor> parts;
  for (const Tensor& tensor : norm) {
    parts.push_back(tensor.contiguous());
  }
  const OptionalTensor offsets = contiguous(bias);
  const Tensor gains = at::empty(parts[0].sizes(), parts[0].options()), shifts = at::empty_like(gains);
  AT_DISPATCH_FLOATING_TYPES(gains.scalar_type(), "cpu_drconv", [&] {
    const scalar_t *mean = parts[0].const_data_ptr<scalar_t>(), *variance = parts[1].const_data_ptr<scalar_t>();
    const scalar_t* weight = parts.size() > 2 ? parts[2].const_data_ptr<scalar_t>() : nullptr;
    const scalar_t* shift = parts.size() > 2 ? parts[3].const_data_ptr<scalar_t>() : nullptr;
    const scalar_t* before = pointer<scalar_t>(offsets);
    scalar_t *gain = gains.mutable_data_ptr<scalar_t>(), *result = shifts.mutable_data_ptr<scalar_t>();
    for (int64_t o = 0; o < gains.numel(); ++o) {
      gain[o] = (weight ? weight[o] : 1) / std::sqrt(variance[o] + static_cast<scalar_t>(eps));
      result[o] = (shift ? shift[o] : 0) + ((before ? before[o] : 0) - mean[o]) * gain[o];
    }
  });
  return {gains, shifts, limit};
}

using Pair = std::tuple<Tensor, Tensor>;

// A whole layer without gradients: guide (its filter, or the logits) with its batch norm, generator, product, bias,
// batch norm, activation. Returns the output, and the logits where they were computed here. `packed` are the filters as
// `pack_cpu` gives them, or none.
Pair layer_cpu(const Tensor& x_, const Tensor& weight, const Tensor& guide, bool has_logits,
               at::TensorList guide_norm, double guide_eps,
               const OptionalTensor& gate_weight, const OptionalTensor& gate_bias, double peak,
               const OptionalTensor& bias, at::TensorList norm, double eps, std::optional<double> limit,
               const OptionalTensor& packed) {
  check_layer(x_, weight, guide, has_logits, guide_norm, gate_weight, gate_bias, bias, norm);
  const Tensor x = readable(x_);
  const Tensor given = has_logits ? guide
                                  : product(x, Filters::of_layer(guide), Tensor(), std::nullopt, {},
                                            fold(std::nullopt, guide_norm, guide_eps, std::nullopt));
  const bool fits = (given.size(2) == x.size(2) && given.size(3) == x.size(3)) || x.numel() == 0;
  const Tensor logits = dense(fits ? given : at::upsample_nearest2d(given, x.sizes().slice(2)));
  OptionalTensor scale, mixing;
  if (gate_weight && x.numel() > 0) {
    const bool is_scale = weight.size(0) == logits.size(1) && gate_weight->size(0) == logits.size(1);
    (is_scale ? scale : mixing) =
        gate(x, gate_weight->contiguous(), gate_bias->contiguous(), peak);
  }
  return {product(x, Filters::of_layer(weight, packed), logits, scale, mixing, fold(bias, norm, eps, limit)),
          has_logits ? at::empty({0}, x.options()) : given};
}

// Filters (M, O, C, 1, 1) in the order in which the product reads them.
Tensor pack_cpu(const Tensor& weight_) {
  TORCH_CHECK_TYPE(weight_.scalar_type() == at::kFloat || weight_.scalar_type() == at::kDouble, "weight is ",
                   weight_.scalar_type(), "; this kernel knows float and double");
  check("weight", weight_, weight_, {-1, -1, -1, 1, 1});
  TORCH_CHECK_VALUE(weight_.numel() > 0, "weight is ", weight_.sizes(), "; there is nothing to pack");
  const Tensor weight = weight_.contiguous();
  Tensor packed;
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "cpu_pack", [&] {
    const Panels<scalar_t> panels(weight.size(0), weight.size(1), weight.size(2));
    packed = at::empty(packed_sizes(panels), weight.options());
    pack(weight.const_data_ptr<scalar_t>(), panels, false, packed.mutable_data_ptr<scalar_t>());
  });
  return packed;
}

template <typename T>
void guide_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& logits,
                    const OptionalTensor& scale, Tensor& grad_x, Tensor& grad_logits, Tensor& grad_scale) {
  const int64_t batch = x.size(0), threads = at::get_num_threads();
  grad_x = at::empty_like(x);
  grad_logits = at::empty_like(logits);
  const Tensor sums = scale ? at::zeros({threads, batch, logits.size(1)}, x.options()) : Tensor();
  GuideBackward<T> backward{picture<const T>(grad), picture<const T>(x), picture<const T>(logits),
                            weight.const_data_ptr<T>(), weight.size(0) != 1, pointer<T>(scale), picture<T>(grad_x),
                            picture<T>(grad_logits), scale ? sums.mutable_data_ptr<T>() : nullptr, batch};
  backward.run();
  if (scale) {
    grad_scale = sums.sum(0);
  }
}

template <typename T>
Tensor filter_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& logits,
                       const OptionalTensor& scale) {
  const FilterBackward<T> backward{picture<const T>(grad), picture<const T>(x), picture<const T>(logits),
                                   pointer<T>(scale), x.size(0), weight.size(0) != 1};
  const int64_t workers = backward.row_workers();
  Tensor results = at::zeros({workers, weight.size(1), weight.size(2), weight.size(3), 1, 1}, weight.options());
  backward.run(results.mutable_data_ptr<T>());
  return workers == weight.size(0) ? results : results.sum(0, true);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// The mask without the guide's gradient: only each pixel's own region is multiplied.
void masked_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& logits,
                     const OptionalTensor& scale, bool needs_scale, Tensor& grad_x, Tensor& grad_scale) {
  const Filters filters = Filters::of_images(weight, true);
  if (!needs_scale) {
    grad_x = product(grad, filters, logits, scale);
    return;
  }
  const Tensor mask = logits.argmax(1, true), sums = at::zeros_like(*scale);
  grad_x = product(grad, filters, logits, std::nullopt);
  grad_scale = sums.scatter_add(1, mask.flatten(1), grad_x.mul(x).sum(1).flatten(1));
  grad_x.mul_(scale->gather(1, mask.flatten(1)).view_as(mask));
}

// Gradients that are not needed are tensors without elements, since an operator cannot return an absent one.
Gradients backward_cpu(const Tensor& grad_y, const Tensor& x_, const Tensor& weight_, const Tensor& logits_,
                       const OptionalTensor& scale_, bool needs_x, bool needs_weight, bool needs_logits,
                       bool needs_scale) {
  check_problem(x_, weight_, logits_, scale_);
  check("the gradient", grad_y, x_, {x_.size(0), weight_.size(2), x_.size(2), x_.size(3)});
  const Tensor x = dense(x_), weight = weight_.contiguous(), logits = dense(logits_);
  const Tensor grad = grad_y.contiguous(x.suggest_memory_format());
  const OptionalTensor scale = contiguous(scale_);
  const Tensor none = at::empty({0}, x.options());
  Tensor grad_x = none, grad_weight = none, grad_logits = none, grad_scale = none;
  if (grad.numel() == 0 || x.numel() == 0) {
    return {at::zeros_like(x), at::zeros_like(weight), at::zeros_like(logits), scale ? at::zeros_like(*scale) : none};
  }
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cpu_region_conv2d_backward", [&] {
    if (needs_logits) {
      guide_backward<scalar_t>(grad, x, weight, logits, scale, grad_x, grad_logits, grad_scale);
    } else if (needs_x || needs_scale) {
      masked_backward(grad, x, weight, logits, scale, needs_scale, grad_x, grad_scale);
    }
    if (needs_weight) {
      grad_weight = filter_backward<scalar_t>(grad, x, weight, logits, scale);
    }
  });
  return {grad_x, grad_weight, grad_logits, grad_scale};
}

}  // namespace
}  // namespace drconv

TORCH_LIBRARY_FRAGMENT(drconv, library) {
  // Python defines these at import, see cpu_operators.py; a program without Python finds them here.
  const auto define = [&](const std::string& name, const std::string& schema) {
    if (!c10::Dispatcher::singleton().findSchema({"drconv::" + name, ""})) {
      library.def((name + schema).c_str());
    }
  };
  define("cpu_region_conv2d", "(Tensor x, Tensor weight, Tensor logits, Tensor? scale) -> Tensor");
  define("cpu_region_conv2d_backward",
         "(Tensor grad_y, Tensor x, Tensor weight, Tensor logits, Tensor? scale, bool needs_x, bool needs_weight, "
         "bool needs_logits, bool needs_scale) -> (Tensor, Tensor, Tensor, Tensor)");
  define("cpu_drconv",
         "(Tensor x, Tensor weight, Tensor guide, bool has_logits, Tensor[] guide_norm, float guide_eps, "
         "Tensor? gate_weight, Tensor? gate_bias, float peak, Tensor? bias, Tensor[] norm, float eps, float? limit, "
         "Tensor? packed=None) -> (Tensor, Tensor)");
  define("cpu_pack", "(Tensor weight) -> Tensor");
}

TORCH_LIBRARY_IMPL(drconv, CPU, library) {
  library.impl("cpu_region_conv2d", drconv::forward_cpu);
  library.impl("cpu_region_conv2d_backward", drconv::backward_cpu);
  library.impl("cpu_drconv", drconv::layer_cpu);
  library.impl("cpu_pack", drconv::pack_cpu);
}
