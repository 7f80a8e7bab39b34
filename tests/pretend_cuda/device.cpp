// A CUDA device made of the processor's memory and kernels; see __init__.py.
//
// Registered as the real one is: a guard, hooks, an allocator, and kernels under the dispatch key
// CUDA. Any operator runs the processor's kernel on the very memory of its tensors. What mixes
// tensors of both devices is refused, and what would make the host wait is counted.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <Python.h>
#include <atomic>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using c10::DeviceIndex;

const c10::Device HERE(c10::DeviceType::CUDA, 0);
std::atomic<long> waits{0};
std::atomic<bool> waiting_is_an_error{false};

void wait(const char* what) {
  waits++;
  TORCH_CHECK(!waiting_is_an_error, "called a synchronizing CUDA operation: ", what);
}

c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, HERE); }

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return HERE.type(); }
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream given) const noexcept override { return given; }
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
c10::impl::DeviceGuardImplRegistrar guard(HERE.type(), new Guard());

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto block = c10::GetCPUAllocator()->allocate(bytes);
    void* data = block.get();
    auto deleter = block.get_deleter();
    return c10::DataPtr(data, block.release_context(), deleter, HERE);
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    memcpy(to, from, bytes);
  }
} allocator;

struct Hooks : at::CUDAHooksInterface {
  Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &allocator; }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  void deviceSynchronize(DeviceIndex) const override { wait("synchronize"); }
};

// Returns a tensor of the processor over the same memory.
Tensor mirror(const Tensor& tensor) {
  at::AutoDispatchBelowADInplaceOrView below;
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), tensor.storage().nbytes(),
      c10::DataPtr(const_cast<void*>(tensor.storage().data()), at::kCPU), c10::GetCPUAllocator(),
      /*resizable=*/true);
  auto found = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  found.unsafeGetTensorImpl()->set_sizes_and_strides(
      tensor.sizes(), tensor.strides(), tensor.storage_offset());
  found._set_conj(tensor.is_conj());
  found._set_neg(tensor.is_neg());
  return found;
}

using Type = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Place = std::optional<at::Device>;
using Flag = std::optional<bool>;
using Order = std::optional<at::MemoryFormat>;

at::ScalarType element(Type type) {
  return type.value_or(at::get_default_dtype_as_scalartype());
}

Tensor empty(at::IntArrayRef size, Type type, Layout, Place, Flag, Order order) {
  return at::detail::empty_generic(
      size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA), element(type), order);
}

Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, Type type, Layout, Place, Flag) {
  return at::detail::empty_strided_generic(
      size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA), element(type));
}

// Returns a copy of a processor's tensor on the device.
Tensor there(const Tensor& tensor) {
  auto copy = empty_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type(), {}, {}, {});
  mirror(copy).copy_(tensor);
  return copy;
}

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  if (!self.is_cuda() && !non_blocking) wait("a copy to the host");
  auto to = self.is_cuda() ? mirror(self) : self;
  to.copy_(source.is_cuda() ? mirror(source) : source);
  return self;
}

at::Scalar local_scalar_dense(const Tensor& self) {
  wait("item");
  return at::_local_scalar_dense(mirror(self));
}

bool equal(const Tensor& self, const Tensor& other) {
  wait("equal");
  TORCH_CHECK(other.is_cuda(), "Cannot compare two tensors on different devices.");
  return at::equal(mirror(self), mirror(other));
}

Tensor nonzero(const Tensor& self) {
  wait("nonzero");
  return there(at::nonzero(mirror(self)));
}

const Tensor& resize_(const Tensor& self, at::IntArrayRef size, Order order) {
  size_t bytes = (c10::multiply_integers(size) + self.storage_offset()) * self.itemsize();
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (storage->nbytes() < bytes) {
    auto block = allocator.allocate(bytes);
    memcpy(block.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(block));
    storage->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  if (order && *order != at::MemoryFormat::Preserve)
    self.unsafeGetTensorImpl()->empty_tensor_restride(*order);
  return self;
}

Tensor& set_part(
    Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
    at::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source) {
  int64_t count = source.nbytes() / self.itemsize();
  return set_part(self, std::move(source), 0, {count}, {1});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_part(
      self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

void record_stream(Tensor&, at::Stream) {}

// Indices may be on the processor.
bool takes_both(const std::string& name) { return name.find("index") != std::string::npos; }

// Runs the processor's kernel on the memory of an operator's tensors.
void run_on_processor(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  std::vector<std::pair<Tensor, Tensor>> taken;  // mirror, original
  bool host = false;
  auto take = [&](const Tensor& tensor) {
    if (tensor.defined() && !tensor.is_cuda() && tensor.dim() && !takes_both(schema.name()))
      host = true;
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    for (auto& [before, original] : taken)
      if (original.is_same(tensor)) return before;
    return taken.emplace_back(mirror(tensor), tensor).first;
  };
  for (auto& value : torch::jit::last(*stack, schema.arguments().size())) {
    auto& argument = const_cast<c10::IValue&>(value);
    if (argument.isTensor()) {
      argument = take(argument.toTensor());
    } else if (argument.isList() && argument.toListRef().size()) {  // of tensors, or of optional ones
      auto list = argument.toList().copy();
      for (size_t i = 0; i < list.size(); i++)
        if (list.get(i).isTensor()) list.set(i, take(list.get(i).toTensor()));
      argument = list;
    } else if (argument.isDevice() && argument.toDevice().is_cuda()) {
      argument = c10::Device(at::kCPU);
    }
  }
  TORCH_CHECK(
      !host || taken.empty(), "Expected all tensors to be on the same device, but found at least ",
      "two devices, cuda:0 and cpu! (", schema.name(), ")");
  std::vector<std::pair<const void*, std::vector<int64_t>>> before;
  for (auto& [copy, _] : taken) before.emplace_back(copy.storage().data(), copy.sizes().vec());

  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);

  for (size_t i = 0; i < taken.size(); i++) {  // an `out` may have grown
    auto& [copy, original] = taken[i];
    if (copy.storage().data() != before[i].first || copy.sizes().vec() != before[i].second)
      set_tensor(original, there(copy));
  }
  auto give = [&](const Tensor& tensor) {
    if (!tensor.defined() || tensor.is_cuda()) return tensor;
    for (auto& [copy, original] : taken)
      if (copy.is_same(tensor)) return original;
    return there(tensor);
  };
  for (auto& value : torch::jit::last(*stack, schema.returns().size())) {
    auto& result = const_cast<c10::IValue&>(value);
    if (result.isTensor()) {
      result = give(result.toTensor());
    } else if (result.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& each : result.toTensorVector()) list.push_back(give(each));
      result = c10::List<Tensor>(list);
    }
  }
}

auto boxed() { return torch::CppFunction::makeFromBoxedFunction<&run_on_processor>(); }

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(boxed()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("equal", &equal);
  m.impl("nonzero", &nonzero);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &set_part);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("record_stream", &record_stream);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  // composite ones that look at the device and call CUDA's own kernels
  for (auto name : {"convolution", "_convolution", "convolution_backward", "_fused_sdp_choice"})
    m.impl(name, boxed());
}

PyObject* count_waits(PyObject*, PyObject*) { return PyLong_FromLong(waits.load()); }

PyObject* forbid_waiting(PyObject*, PyObject* flag) {
  waiting_is_an_error = PyObject_IsTrue(flag);
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"count_waits", count_waits, METH_NOARGS, nullptr},
    {"forbid_waiting", forbid_waiting, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "device", nullptr, -1, functions};

}  // namespace

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
}

PyMODINIT_FUNC PyInit_device() {
  c10::SetAllocator(c10::DeviceType::CUDA, &allocator);
  return PyModule_Create(&module);
}
