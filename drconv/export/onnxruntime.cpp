// The operator drconv::RegionConv for onnxruntime, from the kernel that PyTorch uses: pixels grouped by region, one
// product per region, straight from and to their places. It needs onnxruntime's headers, and no library of PyTorch's.
//
//   x (B, H, W, C), mask (B, H, W) int64, filters (M, C, O), bias (O), scale (B, M) or none, to y (B, H, W, O)
//
// filters must be constant: they are packed once for each session.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <stdexcept>
#include <string>

#include "cpu_forward.h"

// The one function of PyTorch's libraries that its header-only vectors call.
namespace c10::detail {
[[noreturn]] void torchCheckFail(
    const char*, const char*, uint32_t, const char* message) {
  throw std::runtime_error(message);
}
}  // namespace c10::detail

namespace {

using drconv::Forward;
using drconv::Panels;
using drconv::Picture;

constexpr int64_t kMostRows = 4096;  // of a unit of work, which one thread does

void require(bool holds, const char* message) {
  if (!holds) {
    throw std::runtime_error(std::string("drconv::RegionConv: ") + message);
  }
}

class RegionConv {
 public:
  RegionConv(const OrtApi&, const OrtKernelInfo* info) {
    const Ort::ConstKernelInfo kernel(info);
    int is_constant = 0;
    const Ort::ConstValue filters = kernel.GetTensorConstantInput(2, &is_constant);
    require(is_constant, "the filters must be a constant of the model");
    shape_ = filters.GetTensorTypeAndShapeInfo().GetShape();
    require(shape_.size() == 3 && shape_[0] > 0 && shape_[1] > 0 && shape_[2] > 0, "the filters need a shape (M, C, O)");
    limit_ = kernel.GetAttribute<float>("limit");
    const Panels<float> panels(shape_[0], shape_[2], shape_[1]);
    packed_.resize(panels.size());
    for (int64_t i = 0; i < shape_[0] * panels.panels(); ++i) {
      const float* filter = filters.GetTensorData<float>() + i / panels.panels() * shape_[1] * shape_[2];
      panels.pack(filter, true, i % panels.panels(), packed_.data() + i * panels.panel_size());
    }
  }

  void Compute(OrtKernelContext* raw) {
    const Ort::KernelContext context(raw);
    const Ort::ConstValue x = context.GetInput(0), mask = context.GetInput(1), bias = context.GetInput(3);
    const std::vector<int64_t> size = x.GetTensorTypeAndShapeInfo().GetShape();
    require(size.size() == 4 && size[3] == shape_[1], "x needs a shape (B, H, W, C) with the C of the filters");
    const int64_t pixels = size[1] * size[2], rows = size[0] * pixels, regions = shape_[0];
    require(count(mask) == rows, "the mask needs the shape (B, H, W) of x");
    require(count(bias) == shape_[2], "the bias needs the O of the filters");
    const float* scale = nullptr;
    if (context.GetInputCount() > 4) {
      require(count(context.GetInput(4)) == size[0] * regions, "the scale needs a shape (B, M)");
      scale = context.GetInput(4).GetTensorData<float>();
    }
    const std::vector<int64_t> result{size[0], size[1], size[2], shape_[2]};
    float* y = context.GetOutput(0, result).GetTensorMutableData<float>();
    if (rows == 0) {
      return;
    }
    float* logits = one_hot(mask.GetTensorData<int64_t>(), rows, regions);
    const Forward<float> forward{picture<const float>(x.GetTensorData<float>(), shape_[1], pixels),
                                 picture<const float>(logits, regions, pixels), picture<float>(y, shape_[2], pixels),
                                 Panels<float>(regions, shape_[2], shape_[1]), packed_.data(), nullptr, nullptr, true, nullptr,
                                 scale, nullptr, bias.GetTensorData<float>(), limit_ >= 0, limit_};
    run(context, forward, rows);
  }

 private:
  static int64_t count(const Ort::ConstValue& value) {
    return static_cast<int64_t>(value.GetTensorTypeAndShapeInfo().GetElementCount());
  }

  template <typename T>
  static Picture<T> picture(T* data, int64_t channels, int64_t pixels) {
    return {data, channels, pixels, true, channels, 1};
  }

  // The mask in the form that the kernel reads.
  static float* one_hot(const int64_t* mask, int64_t rows, int64_t regions) {
    float* logits = drconv::scratch<float, 7>(rows * regions);
    std::fill_n(logits, rows * regions, 0.0f);
    for (int64_t n = 0; n < rows; ++n) {
      require(mask[n] >= 0 && mask[n] < regions, "the mask names a region that has no filter");
      logits[n * regions + mask[n]] = 1.0f;
    }
    return logits;
  }

  struct Work {
    const Forward<float>& forward;
    int64_t rows, step;
  };

  static void unit(void* data, size_t index) {
    const Work& work = *static_cast<const Work*>(data);
    const int64_t begin = index * work.step, end = std::min(work.rows, begin + work.step);
    work.forward.unit(begin, end, 0, work.forward.panels.panels());
  }

  // Few large units for one thread; as many as there may be threads where there is enough to do.
  static void run(const Ort::KernelContext& context, const Forward<float>& forward, int64_t rows) {
    const int64_t cached = std::max<int64_t>(128, (512 << 10) / sizeof(float) / forward.x.channels);
    const Work work{forward, rows, std::min(cached, kMostRows)};
    context.ParallelFor(unit, drconv::ceil_div(rows, work.step), 0, const_cast<Work*>(&work));
  }

  std::vector<int64_t> shape_;
  std::vector<float> packed_;
  float limit_;
};

struct RegionConvOp : Ort::CustomOpBase<RegionConvOp, RegionConv> {
  void* CreateKernel(const OrtApi& api, const OrtKernelInfo* info) const {
    return new RegionConv(api, info);
  }
  const char* GetName() const {
    return "RegionConv";
  }
  const char* GetExecutionProviderType() const {
    return "CPUExecutionProvider";
  }
  size_t GetInputTypeCount() const {
    return 5;
  }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    return index == 1 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index == 4 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const {
    return 1;
  }
  ONNXTensorElementDataType GetOutputType(size_t) const {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "drconv was built with headers of a later onnxruntime; build it again");
  }
  Ort::InitApi(api);
  static const RegionConvOp op;
  static Ort::CustomOpDomain domain{"drconv"};
  static const bool is_filled = (domain.Add(&op), true);
  (void)is_filled;
  return api->AddCustomOpDomain(options, domain);
}
