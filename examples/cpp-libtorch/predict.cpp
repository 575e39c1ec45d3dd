// predict PUBLISHED_FOLDER [FEATURE ...]: the golden vectors, then the answer to a row.

#include <torch/script.h>

#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

// A .npy file of float32 with two axes: "\x93NUMPY", version, length of the header, header, data.
torch::Tensor read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.size() < 10 || bytes.compare(0, 6, "\x93NUMPY") != 0 || bytes[6] != 1)
    throw std::runtime_error(path + " is no .npy file of version 1");
  const std::size_t start = 10 + static_cast<unsigned char>(bytes[8]) + 256 * static_cast<unsigned char>(bytes[9]);
  const std::string header = bytes.substr(10, start - 10);
  std::smatch shape;
  if (header.find("'descr': '<f4'") == std::string::npos || header.find("'fortran_order': False") == std::string::npos ||
      !std::regex_search(header, shape, std::regex(R"(\((\d+), (\d+)\))")))
    throw std::runtime_error(path + " does not hold float32 rows");
  const long rows = std::stol(shape[1]), columns = std::stol(shape[2]);
  if (bytes.size() != start + 4 * rows * columns) throw std::runtime_error(path + " is cut off");
  torch::Tensor tensor = torch::empty({rows, columns});
  std::memcpy(tensor.data_ptr(), bytes.data() + start, bytes.size() - start);
  return tensor;
}

int main(int count, char** arguments) try {
  if (count < 2) throw std::runtime_error("usage: predict PUBLISHED_FOLDER [FEATURE ...]");
  const std::string folder = arguments[1];
  torch::InferenceMode inference;
  auto model = torch::jit::load(folder + "/model.torchscript.pt");
  const auto given = read_npy(folder + "/golden/input.npy"), expected = read_npy(folder + "/golden/output.npy");

  const auto answers = model.forward({given}).toTensor();
  if (answers.sizes() != expected.sizes()) throw std::runtime_error("golden vectors: another shape");
  const double error = (answers - expected).abs().max().item<double>();
  // Written so that NaN is a mismatch too.
  if (!(error <= 1e-5 * expected.abs().max().item<double>()))
    throw std::runtime_error("golden vectors: the largest error is " + std::to_string(error));
  std::cout << "golden vectors: " << given.size(0) << " rows agree, the largest error is " << error << "\n";

  std::vector<float> features;
  for (int i = 2; i < count; ++i) features.push_back(std::stof(arguments[i]));
  const auto row = features.empty() ? given.slice(0, 0, 1) : torch::tensor(features).unsqueeze(0);
  const auto answer = model.forward({row}).toTensor()[0];
  std::cout << "answer:";
  for (long i = 0; i < answer.size(0); ++i) std::cout << " " << answer[i].item<float>();
  std::cout << std::endl;
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return 1;
}
