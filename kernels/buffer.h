// A Python buffer (a NumPy array, say) held in place: never copied, checked once, kept alive as long as this is.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ddpm_rt {

namespace nb = nanobind;

enum class Access { kRead, kWrite };

class Buffer {
 public:
  // Element types are written as NumPy's: "float32", "uint64"; `types` lists those accepted, separated by " or ".
  // Raises TypeError if `object` has no buffer; ValueError, naming the buffer, what was found and what was
  // expected, if it is of another type, not C-contiguous, or read-only where it must be written.
  Buffer(nb::handle object, const char* name, const char* types, Access access)
      : name_(name), writable_(access == Access::kWrite) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_STRIDES | PyBUF_FORMAT) != 0) {
      PyErr_Clear();
      const std::string found = nb::type_name(object.type()).c_str();
      throw nb::type_error((name_ + " is " + found + "; expected an array of " + types).c_str());
    }
    held_ = true;
    try {
      type_ = type_of(view_);
      const std::string accepted = std::string(" or ") + types + " or ";
      if (accepted.find(" or " + type_ + " or ") == std::string::npos) fail(type_, types);
      if (!PyBuffer_IsContiguous(&view_, 'C')) {
        fail("not C-contiguous", "a C-contiguous array; np.ascontiguousarray makes one");
      }
      if (reinterpret_cast<uintptr_t>(view_.buf) % view_.itemsize != 0) fail("not aligned", "an aligned array; a copy is");
      if (access == Access::kWrite && view_.readonly) fail("read-only", "a writable array");
    } catch (...) {
      PyBuffer_Release(&view_);
      throw;
    }
  }

  Buffer(Buffer&& other) noexcept
      : name_(std::move(other.name_)),
        type_(std::move(other.type_)),
        view_(other.view_),
        writable_(other.writable_),
        held_(other.held_) {
    other.held_ = false;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;

  ~Buffer() {
    if (held_) PyBuffer_Release(&view_);
  }

  template <typename T>
  T* data() const {
    return static_cast<T*>(view_.buf);
  }
  const std::string& name() const { return name_; }
  const std::string& type() const { return type_; }
  bool writable() const { return writable_; }

  bool overlaps(const Buffer& other) const {
    const char *first = data<char>(), *other_first = other.data<char>();
    return first < other_first + other.view_.len && other_first < first + view_.len;
  }

  size_t size_bytes() const { return (size_t)view_.len; }
  std::vector<int64_t> shape() const { return {view_.shape, view_.shape + view_.ndim}; }

  void expect_shape(const std::vector<int64_t>& shape) const {
    if (this->shape() != shape) fail("of shape " + text(this->shape()), text(shape));
  }

  [[noreturn]] void fail(const std::string& found, const std::string& expected) const {
    throw nb::value_error((name_ + " is " + found + "; expected " + expected).c_str());
  }

  static std::string text(const std::vector<int64_t>& shape) {
    std::string joined;
    for (size_t i = 0; i < shape.size(); ++i) joined += (i ? ", " : "") + std::to_string(shape[i]);
    return "[" + joined + "]";
  }

 private:
  static std::string type_of(const Py_buffer& view) {
    const std::string format = view.format ? view.format : "B";
    const size_t order = format.find_first_of("@=<") == 0 ? 1 : 0;  // '>' and structures stay unknown
    if (format.size() != order + 1) return "of format '" + format + "'";
    const char code = format[order];
    const std::string bits = std::to_string(8 * view.itemsize);
    if (std::string("efd").find(code) != std::string::npos) return "float" + bits;
    if (std::string("bhilqn").find(code) != std::string::npos) return "int" + bits;
    if (std::string("BHILQN").find(code) != std::string::npos) return "uint" + bits;
    return "of format '" + format + "'";
  }

  std::string name_, type_;
  Py_buffer view_;
  bool writable_;
  bool held_ = false;
};

}  // namespace ddpm_rt
