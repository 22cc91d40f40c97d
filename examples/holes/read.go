package config

import "os"

func Read(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		
	}
	return data, nil
}
