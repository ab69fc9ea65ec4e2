// A compiled graph. PyTorch's own binding of its runner keeps Python's lock (the GIL) for the whole pass, so no other
// thread of a worker could read a request or send a result meanwhile. A method of a custom class runs without it.

#include <torch/csrc/inductor/aoti_runner/model_container_runner_cpu.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using Runner = torch::inductor::AOTIModelContainerRunnerCpu;
using Weights = c10::Dict<std::string, at::Tensor>;

template <typename R>
void load_blob(R& runner, const std::string& path) {
  if constexpr (requires { runner.update_constant_buffer_from_blob(path); }) {
    runner.update_constant_buffer_from_blob(path);
  } else {
    throw std::runtime_error("this PyTorch loads no weights from a file of their own");
  }
}

class Graph : public torch::CustomClassHolder {
 public:
  // program: the path of the compiled graph. passes: how many may run at the same time; one more waits.
  Graph(const std::string& program, int64_t passes) : runner_(program, passes) {}

  // The weights must not change afterwards.
  void use_weights(const Weights& weights) {
    std::unordered_map<std::string, at::Tensor> by_name;
    for (const auto& entry : weights) by_name.emplace(entry.key(), entry.value());
    runner_.update_constant_buffer(by_name, /*use_inactive=*/false, /*validate_full_updates=*/true,
                                   /*user_managed=*/true);
    weights_ = weights;  // they must live as long as the runner
  }

  void use_blob(const std::string& path) { load_blob(runner_, path); }

  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs) { return runner_.run(inputs); }

 private:
  Weights weights_;
  Runner runner_;
};

TORCH_LIBRARY_FRAGMENT(bert_serving, library) {
  library.class_<Graph>("Graph")
      .def(torch::init<const std::string&, int64_t>())
      .def("use_weights", [](const c10::intrusive_ptr<Graph>& self, Weights weights) { self->use_weights(weights); })
      .def("use_blob", [](const c10::intrusive_ptr<Graph>& self, std::string path) { self->use_blob(path); })
      .def("run", [](const c10::intrusive_ptr<Graph>& self, std::vector<at::Tensor> inputs) {
        return self->run(inputs);
      });
}

}  // namespace
